/* eval_case.h: the prompts of an evaluation in tokens: from files of questions and answers, or windows of a text. */
#ifndef DOUBLEP_TOOL_EVAL_CASE_H
#define DOUBLEP_TOOL_EVAL_CASE_H

#include "tokenizer.h"

typedef struct eval_case {
    char *name, *task;
    uint32_t n_context;      /* the length it stands for: as the file says, or that of the prefill */
    tokenizer_ids prefill;   /* goes through dense attention once */
    tokenizer_ids question;  /* then goes token by token through a method, at least one token */
    tokenizer_ids answer;    /* what should follow */
    uint64_t hash;           /* of all that */
} eval_case;

typedef struct eval_cases {
    eval_case *list;
    size_t count;
} eval_cases;

typedef struct eval_selection {
    const char *tasks; /* TASK or TASK:ID, separated by commas; NULL: all */
    size_t per_task;   /* at most so many of each task and file */
    size_t limit;      /* at most so many altogether */
} eval_selection;

/* Adds the prompts of a file. False and a message on failure. */
bool eval_cases_add_prompts(eval_cases *cases, const char *path, const eval_selection *selection, const tokenizer *t,
                            char *error, size_t error_size);

/* Adds the windows of so many tokens that fit into a text, one after the other; of each the last n_scored are the
 * answer. Their task is the file's name. */
bool eval_cases_add_text(eval_cases *cases, const char *path, size_t window, size_t n_scored, size_t limit,
                         const tokenizer *t, char *error, size_t error_size);

void eval_cases_free(eval_cases *cases);

/* FNV-1a over bytes, going on from `hash`; start with eval_hash_start. */
static const uint64_t eval_hash_start = 0xcbf29ce484222325u;
uint64_t eval_hash(uint64_t hash, const void *bytes, size_t n);

#endif
