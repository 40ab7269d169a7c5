"""What travels between server and merchants: typed messages, and their encoding as Flower records."""
