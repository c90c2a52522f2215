from Cython.Build import cythonize
from setuptools import Extension, setup

import dataplane

element = Extension("drop_every", ["drop_every.pyx"], include_dirs=[dataplane.get_include()], extra_compile_args=["-O3"])
setup(ext_modules=cythonize([element], language_level=3))
