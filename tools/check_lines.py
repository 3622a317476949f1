"lint.py PATHS...: lines > 120, cells > 25 lines, functions > 40 lines, private imports, undefined/unused names"
import ast,json,subprocess,sys
from pathlib import Path
files=[p for a in sys.argv[1:] for p in ([Path(a)] if Path(a).is_file() else [*Path(a).rglob('*.ipynb'),*Path(a).rglob('*.py')])]
bad=0
for p in files:
    if p.name=='_modidx.py': continue
    units=[(f"{p}:cell {i}",''.join(c['source']),c['cell_type']) for i,c in enumerate(json.loads(p.read_text())['cells'])] if p.suffix=='.ipynb' else [(str(p),p.read_text(),'py')]
    for where,src,kind in units:
        for k,l in enumerate(src.splitlines(),1):
            if len(l)>120 and not (kind=='markdown' and ('http' in l or '|' in l)): print(f"{where} line {k}: {len(l)} columns"); bad+=1
        if kind=='code' and len(src.splitlines())>25: print(f"{where}: {len(src.splitlines())} lines in a cell"); bad+=1
        if kind!='markdown':
            try: t=ast.parse('\n'.join('pass' if l.lstrip().startswith(('%','!')) else l for l in src.splitlines()))
            except SyntaxError as e: print(where,e); bad+=1; continue
            for n in ast.walk(t):
                if isinstance(n,(ast.FunctionDef,ast.AsyncFunctionDef)) and n.end_lineno-n.lineno+1>40: print(f"{where}: {n.name} has {n.end_lineno-n.lineno+1} lines"); bad+=1
                if isinstance(n,ast.ImportFrom) and (n.module or '').startswith('edc_nb'):
                    for a in n.names:
                        if a.name.startswith('_') and not a.name.startswith('__'): print(f"{where}: private import {a.name}"); bad+=1
subprocess.run(['ruff','check','--isolated','--select','F401,F811,F821,F841','--line-length','120','--output-format','concise',*map(str,files)])
print(bad,'findings')
