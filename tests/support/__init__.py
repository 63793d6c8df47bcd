"""What several tests share. Nothing here is a test; each module says the rest in its docstring.

===========================  ==================================================================
module                       what is in it
===========================  ==================================================================
``models``                   tiny random models of every architecture, and a tokenizer
``planted``                  a causal model that completes prompts with planted probabilities
``adapters``                 an anchored model, a batch, a few steps: the tests of ``anchored/``
``training``                 a trainer of text generation on a few rows, its log, its gradients
``classification``           a trainer of a classifier on a few rows
``command_line``             ``balora train`` with fields that options replace
``classification_runs``      ``balora train`` on a tiny classifier: fixtures, rows, results
``comparison``               fixtures of ``balora compare``: a model, rows and a recipe to change
``fake_cells``         cells that train nothing, in processes of their own
``fake_comparison``          the files of a comparison that nobody ran, for tables and reports
``fake_server``             a server of OpenAI's protocol that fails in every way
``bad_values``               wrong values for every field, derived from what the fields declare
``killing``                  calls that are killed inside one of their writes
``sandbox``                  where programs run in the sandbox, as root and as another user
``small_disk``               a disk that is soon full
``imports``                  who imports whom in the source
``documents``                the code blocks of README.md and docs/
``two_processes``            training by one process, and by two that share the work
``sharded``                  every method by one process, and by two that split their weights
``process``                  the program of each of those processes
``wheel``                    the wheel, and an environment that has nothing else of balora
``newcomer``                 somebody who has the wheel and the pages, and copies commands
``browser``                  a real browser that opens a page
``usage``                    the lines that a command prints last, and what they read
===========================  ==================================================================
"""
