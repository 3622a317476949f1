"""Reads settings.ini, the single source of the package's metadata."""
import shlex
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=['='])
config.read(Path(__file__).parent / 'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
extras = {name: shlex.split(cfg[f'{name}_requirements']) for name in ('models', 'lab', 'search', 'diagnostics', 'dev')}

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=(Path(__file__).parent / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    keywords=cfg['keywords'],
    author=cfg['author'],
    author_email=cfg['author_email'],
    url=cfg['git_url'],
    license='Apache-2.0',
    license_files=['LICENSE'],
    packages=find_packages(include=[cfg['lib_path'], f"{cfg['lib_path']}.*"]),
    package_data={cfg['lib_name']: ['assets/*']},
    python_requires=f">={cfg['min_python']}",
    install_requires=shlex.split(cfg['requirements']),
    extras_require=extras,
    entry_points={
        'console_scripts': shlex.split(cfg['console_scripts']),
        'nbdev': [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
    zip_safe=False,
)
