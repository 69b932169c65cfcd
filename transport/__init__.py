"""How services reach each other: the one place of listeners, connections, body limits, problems and streams;
and the frame that all services share: settings, logs, signals, what operators ask.

Imports `protocol` alone. Mutual TLS comes here, and nowhere else. FastAPI is not known here: applications are ASGI.
"""
