"""The web page: what the edit room does, for people with a browser.

A page keeps what is a person's own in the browser's session. The models are shared, each behind its lock, and a picture
depends on its settings alone, so whoever works beside somebody else sees nothing of it but the queue.
"""
