/* options.h: the options that the commands which run a model share, and how their values are read. */
#ifndef DOUBLEP_TOOL_OPTIONS_H
#define DOUBLEP_TOOL_OPTIONS_H

#include <argp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "session.h"

/* Exit statuses of the command. */
enum { EXIT_RUNTIME = 1, EXIT_USAGE = 2 };

typedef struct model_options {
    const char *model_path;
    session_method methods[SESSION_MAX_METHODS];
    size_t n_methods;
    bool paper; /* the index of the paper's form, too */
    int n_threads;
    dp_pinning pinning;
    dp_type kv_type;
    uint32_t chunk;
    size_t max_tokens; /* 0: not given */
    bool json;
    /* As given: settled in the end, when all have been seen. */
    bool dense, double_p;
    double epsilon, p1, p2; /* negative: not given */
} model_options;

void model_options_init(model_options *options);

/* A parser of these options for the `children` of a command's argp; the child's input is a model_options. */
extern const struct argp model_options_argp;

/* A number in [min, max]; argp_error with the option's name otherwise. */
double option_number(const struct argp_state *state, const char *name, const char *text, double min, double max);
uint64_t option_integer(const struct argp_state *state, const char *name, const char *text, uint64_t min, uint64_t max);

/* The model and a context with a sequence per method; false and a message on failure. Free what is not NULL. */
bool model_options_open(const model_options *options, model **m, model_context **context, char *error,
                        size_t error_size);

/* The type or the policy of that name; argp_error where there is none. */
dp_type option_kv_type(const struct argp_state *state, const char *text);
dp_pinning option_pinning(const struct argp_state *state, const char *text);

/* "f32", "f16", "bf16". */
const char *kv_type_name(dp_type type);

#endif
