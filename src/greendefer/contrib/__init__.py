"""What greendefer has for other people's libraries. Each module needs its library installed."""
