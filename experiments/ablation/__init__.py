"""What is each of esrl's defaults worth, one factor at a time?"""
