"""The inference engine: one model, many requests, continuous batching.

``engine.Engine`` is the entry point. Scheduling decisions are pure Python; only ``llama/`` calls llama.cpp. The package
knows neither processes nor HTTP.
"""
