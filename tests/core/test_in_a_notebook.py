"""What a notebook shows instead of a traceback: a mistake is its sentence, an interruption one line."""
import subprocess
import sys
from textwrap import dedent

from kit import edc_environment


def shown(cell):
    "The lines that IPython prints for a cell."
    program = f'''
        from IPython.core.interactiveshell import InteractiveShell
        shell = InteractiveShell.instance(colors='nocolor')
        shell.run_cell({dedent(cell)!r})
    '''
    done = subprocess.run([sys.executable, '-c', dedent(program)], env=edc_environment(), capture_output=True,
                          text=True, timeout=180)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]


def test_a_mistake_is_shown_as_its_sentence():
    lines = shown("from edc_nb import recipe\nrecipe('edcc')")
    assert len(lines) == 1 and lines[0].startswith('EdcError: ') and "'edcc'" in lines[0]


def test_an_interruption_is_shown_as_one_line_and_the_run_resumes(tmp_path):
    cell = f'''
        import os, signal, threading, time
        from edc_nb import condense, recipe
        signal.signal(signal.SIGINT, signal.default_int_handler)      # a parent may have told us to ignore it
        def press():      # a first one may fall into code that swallows it
            while True:
                time.sleep(3)
                os.kill(os.getpid(), signal.SIGINT)
        threading.Thread(target=press, daemon=True).start()
        small = recipe('edc', 'digits', 2).replace({{'synthesize.observers': ['convnet_d1'], 'squeeze.epochs': 3000}})
        try: condense(small, out={str(tmp_path / 'run')!r}, progress=False)
        finally: signal.signal(signal.SIGINT, signal.SIG_IGN)
    '''
    lines = shown(cell)
    assert len(lines) == 1 and lines[0].startswith('Interrupted: ') and 'resume' in lines[0], lines
