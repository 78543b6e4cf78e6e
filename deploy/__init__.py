"""Deployment: configuration files, the embedded cluster, the command line, the demo.

The top layer: may use everything below it.
"""
