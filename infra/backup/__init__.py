"""Save the local cluster's data while it runs, and restore it elsewhere, whole and checked.

A backup is a folder: the files of the home as they are, and ``backup.json`` with the SHA-256 of each. Credentials and
what is known of running processes (``cluster/``) are left out: a restored cluster makes its own.
"""
