/* main.c: the command `doublep`: finds the subcommand and hands over. */
#include <argp.h>
#include <stdio.h>
#include <string.h>

#include "commands.h"
#include "doublep/doublep.h"
#include "options.h"

typedef struct command {
    const char *name, *summary;
    int (*run)(int argc, char **argv);
} command;

static const command commands[] = {
    {"run", "Answer a prompt with a GGUF model, dense or with Double-P attention", cmd_run},
    {"compare", "Answer prompts from a file both ways, side by side", cmd_compare},
    {"eval", "Compare methods of attention with dense attention: accuracy against bytes", cmd_eval},
    {"convert", "Make a GGUF file from a folder with safetensors", cmd_convert},
    {"bench", "Measure the decode step, dense and with Double-P, on this machine", cmd_bench},
    {"llama", "Start a program of llama.cpp's with Double-P attention", cmd_llama},
    {"info", "Show this machine and this build, measure bandwidth and peak", cmd_info},
};

enum { N_COMMANDS = sizeof(commands) / sizeof(commands[0]) };

static void print_help(FILE *out)
{
    fputs("Usage: doublep COMMAND [OPTION...]\n"
          "Sparse attention for decoding long contexts on CPUs.\n\n",
          out);
    for (size_t i = 0; i < N_COMMANDS; i++)
        fprintf(out, "  %-9s %s\n", commands[i].name, commands[i].summary);
    fputs("\n`doublep COMMAND --help` lists a command's options; `doublep --version` prints the version.\n", out);
}

int main(int argc, char **argv)
{
    argp_err_exit_status = EXIT_USAGE;
    if (argc < 2) {
        print_help(stderr);
        return EXIT_USAGE;
    }
    const char *const name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        print_help(stdout);
        return 0;
    }
    if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0) {
        printf("doublep %s\n", DP_VERSION_STRING);
        return 0;
    }
    for (size_t i = 0; i < N_COMMANDS; i++)
        if (strcmp(name, commands[i].name) == 0) {
            char title[64];
            snprintf(title, sizeof(title), "doublep %s", name);
            argv[1] = title;
            return commands[i].run(argc - 1, argv + 1);
        }
    fprintf(stderr, "doublep: \"%s\" is not a command; `doublep help` lists them\n", name);
    return EXIT_USAGE;
}
