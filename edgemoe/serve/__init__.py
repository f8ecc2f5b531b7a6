"""An OpenAI-compatible HTTP server with a page to look at: the surface of a runtime for other people's tools.

One engine, one thread that owns it (`worker`); an asyncio front (`app`) that never computes. Requests wait in a bounded
queue. Nothing here knows of native code: it asks `runtime`. Imported only by `edgemoe serve`.
"""
