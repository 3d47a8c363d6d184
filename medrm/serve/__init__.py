"""`medrm serve`: a saved reward model or judge behind HTTP. Imports neither torch nor FastAPI.

request -> admission (token, size, time) -> form -> case -> queue -> the model's one thread
"""
