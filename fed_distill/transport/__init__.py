"""Messages between server and merchants: types, and encoding as Flower records."""
