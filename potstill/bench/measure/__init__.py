"""What a bench measures, one module per kind; importing this package imports none of them.

A worker process imports `measure.memory` before anything else, so this file stays empty.
"""
