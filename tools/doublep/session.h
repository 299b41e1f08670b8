/* session.h: one prompt from end to end: the prefill, the index, then one answer per kind of attention.
 *
 * The protocol: the context is prefilled densely; the question, or without one the prompt's last token, goes token by
 * token through dp_decode with the chosen attention, and so does every token of the answer. Each method answers on its
 * own sequence of the context, so all start from the same state. */
#ifndef DOUBLEP_TOOL_SESSION_H
#define DOUBLEP_TOOL_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "context.h"
#include "sampler.h"

enum { SESSION_MAX_METHODS = 2 };

typedef struct session_method {
    const char *name; /* "dense", "double-p" */
    dp_attention_params params;
} session_method;

/* A prompt in tokens: what is prefilled, and the tail that is decoded before the answer. */
typedef struct session_prompt {
    tokenizer_ids prefill, tail;
} session_prompt;

/* Called with each piece of an answer: whole UTF-8 characters. */
typedef void (*session_text_fn)(void *user, const char *text, size_t length);

typedef struct session_settings {
    size_t max_tokens; /* of an answer */
    double temperature;
    uint64_t seed;
    session_text_fn on_text; /* NULL: nobody listens */
    void *user;
} session_settings;

typedef enum session_stop { SESSION_STOP_LENGTH, SESSION_STOP_EOS, SESSION_STOP_CONTEXT } session_stop;

typedef struct session_answer {
    tokenizer_ids ids;
    char *text; /* the bytes of the ids, not terminated */
    size_t length;
    session_stop stop;
    model_counters decode; /* tail and answer */
    dp_memory memory;      /* of the sequence, at the end */
} session_answer;

typedef struct session_prefill_result {
    model_counters counters;
    double index_ms; /* clustering after the prompt, of the sequences whose method uses the index */
} session_prefill_result;

/* Tokens of a prompt: bos (where the model wants it) and text; the question, where there is one, is the tail. False
 * and a message where memory runs out or the prompt is empty. */
bool session_prompt_create(session_prompt *prompt, const tokenizer *t, const char *text, size_t length,
                           const char *question, size_t question_length, char *error, size_t error_size);
void session_prompt_free(session_prompt *prompt);

/* Prefill of what the context does not have yet, then the index; a method per sequence of the context. */
bool session_prefill(model_context *context, const session_prompt *prompt, const session_method *methods,
                     model_progress_fn progress, void *user, session_prefill_result *result, char *error,
                     size_t error_size);

/* The answer of one method, on sequence i. answer must be zeroed, and freed whatever is returned. */
bool session_answer_create(model_context *context, uint32_t i, const session_prompt *prompt,
                           const session_method *method, const session_settings *settings, session_answer *answer,
                           char *error, size_t error_size);
void session_answer_free(session_answer *answer);

#endif
