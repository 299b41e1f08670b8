/* convert.h: the command `doublep convert`: a model folder (safetensors, config.json, tokenizer.json) to GGUF. */
#ifndef DOUBLEP_TOOL_CONVERT_H
#define DOUBLEP_TOOL_CONVERT_H

/* argv[0] is the name that usage messages show. Returns the exit status. */
int cmd_convert(int argc, char **argv);

#endif
