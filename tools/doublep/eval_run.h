/* eval_run.h: runs methods on one prompt after the other, all from the same prefill, and measures them.
 *
 * A prompt is prefilled densely, once; its keys and values are in a cache in token order. A method indexes that cache
 * and then attends while question and answer go through the model token by token. At every step and layer the method's
 * output is compared with dense attention over its own cache and from its own query. Time of the comparison does not
 * count. */
#ifndef DOUBLEP_TOOL_EVAL_RUN_H
#define DOUBLEP_TOOL_EVAL_RUN_H

#include "context.h"
#include "eval_case.h"
#include "eval_methods.h"
#include "eval_store.h"
#include "progress.h"

/* Which tokens follow the question. */
typedef enum eval_mode {
    EVAL_FORCED,   /* the prompt's answer */
    EVAL_CONTINUE, /* dense attention's own greedy continuation, without end-of-sequence tokens */
    EVAL_GENERATE  /* each method's own greedy tokens, until end of sequence */
} eval_mode;

typedef struct eval_run_config {
    eval_mode mode;
    size_t max_tokens; /* to generate or continue */
    int n_threads;     /* 0: one per core */
    dp_pinning pinning;
    dp_type kv_type;
    uint32_t chunk;
    bool attention_metrics; /* compare attention outputs, too, not logits alone */
    uint64_t model_hash;
} eval_run_config;

typedef struct eval_runner eval_runner;

/* NULL and a message on failure. model and store must outlive the runner. */
eval_runner *eval_runner_create(const model *m, const eval_run_config *config, const eval_store *store, char *error,
                                size_t error_size);
void eval_runner_free(eval_runner *r); /* NULL is allowed */

/* Prefills a prompt, or takes its rows from the store, and runs dense attention for reference. `dense` gets what was
 * measured of that. */
bool eval_runner_start(eval_runner *r, const eval_case *c, progress *bar, eval_result *dense, char *error,
                       size_t error_size);

/* Runs a method on the prompt. */
bool eval_runner_measure(eval_runner *r, const eval_method *method, eval_result *result, char *error, size_t error_size);

#endif
