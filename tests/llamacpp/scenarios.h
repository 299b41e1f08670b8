/* What is done to a cache of llama.cpp's, through its own API, and the logits that come of it. */
#ifndef TESTS_LLAMACPP_SCENARIOS_H
#define TESTS_LLAMACPP_SCENARIOS_H

#include "llama.h"

enum { CONTEXT = 4096, LONG = 900, SLOTS = 4, MAX_LOGITS = 400 };

typedef struct run {
    struct llama_model *model;
    struct llama_context_params params;
    struct llama_context *ctx;
    int n_vocab;
    float *logits; /* [n][n_vocab] */
    int n;
} run;

/* Tokens first .. last - 1 of a text to a sequence, in one batch or one by one. Every output's logits are kept. */
void prompt(run *r, int text, int first, int last, llama_seq_id seq);
void steps(run *r, int text, int first, int last, llama_seq_id seq);

/* Scenarios; scenarios.c says what each is. */
void grow(run *r);
void grow_on_other_threads(run *r);
void remove_tail(run *r);
void clear_all(run *r);
void clear_cells(run *r);
void restore_state(run *r);
void restore_sequence(run *r);
void restore_in_place(run *r);
void shift(run *r);
void shift_in_place(run *r);
void drafts(run *r);
void slots(run *r);
void many_slots(run *r);
void slots_in_little_memory(run *r);
void copy_sequence(run *r);

#endif
