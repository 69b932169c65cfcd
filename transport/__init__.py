"""How services reach each other: the one place of listeners, connections, body limits, problems and streams.

Imports `protocol` alone. Mutual TLS comes here, and nowhere else. FastAPI is not known here: applications are ASGI.
"""
