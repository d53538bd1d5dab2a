"""Did a change of the code change what is trained?"""
