/* commands.h: the subcommands. Each gets argv with the name for usage messages in argv[0] and returns the exit status. */
#ifndef DOUBLEP_TOOL_COMMANDS_H
#define DOUBLEP_TOOL_COMMANDS_H

#include "convert.h" /* cmd_convert */

int cmd_run(int argc, char **argv);
int cmd_compare(int argc, char **argv);
int cmd_eval(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_info(int argc, char **argv);
int cmd_llama(int argc, char **argv);

#endif
