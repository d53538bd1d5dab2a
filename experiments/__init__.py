"""What is measured with esrl: one folder for each question, and the bench that they share."""
