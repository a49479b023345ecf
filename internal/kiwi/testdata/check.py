"""Checks KIWI descriptions as `kiwi-ng system build` does before it asks a package
source: against the schema, and with the checks that KIWI makes before a build.

    check.py ARCHITECTURE DIRECTORY...

One line is printed for each directory: its name, "ok" or what is wrong, and what
KIWI makes of it, as JSON.
"""
import json
import logging
import os
import sys

arguments = sys.argv[1:]
sys.argv = ['kiwi-ng', '--target-arch', arguments[0], 'image', 'info', '--description', '/']

from kiwi.tasks.base import CliTask  # noqa: E402  it reads sys.argv when it is made

logging.disable(logging.CRITICAL)
for directory in arguments[1:]:
    wrong, state = 'ok', None
    try:
        task = CliTask(should_perform_task_setup=False)
        task.load_xml_description(directory)
        task.run_checks(task.checks_before_command_args)
        task.run_checks(task.checks_after_command_args)
        state = task.xml_state
    except Exception as issue:  # whatever it is, it is the result
        wrong = '{0}: {1}'.format(type(issue).__name__, issue)
    made = {}
    if state:
        made = {
            'manager': state.get_package_manager(),
            'packages': state.get_system_packages(),
            'bootstrap': state.get_bootstrap_packages(),
            'ignored': state.get_system_ignore_packages(),
            'repositories': [
                {
                    'alias': r.get_alias(), 'path': r.get_source().get_path(),
                    'suite': r.get_distribution(), 'sourcetype': r.get_sourcetype(),
                    'signed': r.get_package_gpgcheck() or r.get_repository_gpgcheck() or False,
                } for r in state.get_repository_sections_used_for_build()
            ],
            'options': state.build_type.get_kernelcmdline(),
        }
    print(json.dumps({'name': os.path.basename(directory), 'wrong': wrong, 'made': made}))
