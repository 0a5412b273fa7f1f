"""What people look at: pictures and tables of finished runs. The only room that draws."""
