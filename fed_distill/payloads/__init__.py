"""What travels between server and merchants, one kind of payload a file."""
