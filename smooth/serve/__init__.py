"""Pictures over HTTP from a registered model, in batches, on Ray Serve.

A *front* reads requests and answers them; *painters*, a process each, hold the model. Each painter follows the
registry's alias by itself: it loads a new version beside the old one, and a request is painted by the version that the
painter served when the request came to it.
"""
