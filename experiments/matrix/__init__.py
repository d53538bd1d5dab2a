"""Does esrl work with the oldest and the newest versions that it says it takes?"""
