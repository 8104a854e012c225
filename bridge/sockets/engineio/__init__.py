"""Engine.IO, protocol version 4: sessions over WebSocket and long polling."""
