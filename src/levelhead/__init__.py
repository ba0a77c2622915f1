"""levelhead"""
