"""The site of the documentation: pages that are made of the source, and the files around docs/.

Each page is made by a function without arguments, which returns its Markdown.
"""
