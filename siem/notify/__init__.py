"""People who do not look at the console: findings go to them by mail, webhook or syslog."""
