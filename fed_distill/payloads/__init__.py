"""Payloads of messages between server and merchants, one kind per file."""
