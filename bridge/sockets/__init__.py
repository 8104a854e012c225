"""Windows: verify, join, replay, emit; the only room that imports socketio and engineio."""
