"""The operator's console: its page, sign-in and sessions."""
