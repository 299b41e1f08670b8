/* session.c: see session.h. */
#include "session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "utf8.h"

static bool no_memory(char *error, size_t error_size)
{
    snprintf(error, error_size, "out of memory");
    return false;
}

bool session_prompt_create(session_prompt *prompt, const tokenizer *t, const char *text, size_t length,
                           const char *question, size_t question_length, char *error, size_t error_size)
{
    *prompt = (session_prompt){0};
    if (length + question_length == 0) {
        snprintf(error, error_size, "the prompt is empty");
        return false;
    }
    if (tokenizer_add_bos(t) && tokenizer_bos(t) >= 0 && !tokenizer_ids_push(&prompt->prefill, tokenizer_bos(t)))
        return no_memory(error, error_size);
    if (!tokenizer_encode(t, text, length, true, &prompt->prefill, error, error_size) ||
        !tokenizer_encode(t, question, question_length, true, &prompt->tail, error, error_size))
        return false;
    if (prompt->tail.count > 0)
        return true;
    const int32_t last = prompt->prefill.ids[--prompt->prefill.count];
    return tokenizer_ids_push(&prompt->tail, last) || no_memory(error, error_size);
}

void session_prompt_free(session_prompt *prompt)
{
    tokenizer_ids_free(&prompt->prefill);
    tokenizer_ids_free(&prompt->tail);
}

bool session_prefill(model_context *context, const session_prompt *prompt, const session_method *methods,
                     model_progress_fn progress, void *user, session_prefill_result *result, char *error,
                     size_t error_size)
{
    const size_t have = (size_t)model_context_tokens(context, 0);
    if (!model_prefill(context, prompt->prefill.ids + have, prompt->prefill.count - have, NULL, progress, user,
                       &result->counters, error, error_size))
        return false;
    for (uint32_t i = 0; i < model_context_n_sequences(context) && prompt->prefill.count > 0; i++) {
        const uint64_t start = clock_ns();
        /* A dense method's sequence, too: what waits would otherwise be clustered while it decodes. */
        if (!model_build_index(context, i, error, error_size))
            return false;
        if (methods[i].params.method != DP_DENSE)
            result->index_ms += (double)(clock_ns() - start) * 1e-6;
    }
    return true;
}

/* Appends a token to the answer and gives the listener what has become whole characters; at the end, all the rest. */
static bool add_text(session_answer *answer, const tokenizer *t, int32_t id, size_t *sent,
                     const session_settings *settings)
{
    size_t length = 0;
    const char *const piece = tokenizer_is_control(t, id) ? "" : tokenizer_decode(t, id, &length);
    char *const text = realloc(answer->text, answer->length + length + 1);
    if (!text)
        return false;
    answer->text = text;
    if (length)
        memcpy(text + answer->length, piece, length);
    answer->length += length;
    const size_t whole = utf8_whole(text, answer->length);
    if (settings->on_text && whole > *sent) {
        settings->on_text(settings->user, text + *sent, whole - *sent);
        *sent = whole;
    }
    return true;
}

bool session_answer_create(model_context *context, uint32_t i, const session_prompt *prompt,
                           const session_method *method, const session_settings *settings, session_answer *answer,
                           char *error, size_t error_size)
{
    const model *const m = model_context_model(context);
    sampler sampler = {.temperature = settings->temperature, .state = settings->seed};
    size_t sent = 0;
    float *const logits = malloc(m->shape.n_vocab * sizeof(float));
    if (!logits)
        return no_memory(error, error_size);

    bool done = true;
    for (size_t t = 0; done && t < prompt->tail.count; t++)
        done = model_decode(context, i, &prompt->tail.ids[t], 1, &method->params,
                            t + 1 == prompt->tail.count ? logits : NULL, &answer->decode, error, error_size);
    answer->stop = SESSION_STOP_LENGTH;
    while (done && answer->ids.count < settings->max_tokens) {
        const int32_t id = sampler_next(&sampler, logits, m->shape.n_vocab);
        if (id < 0) {
            snprintf(error, error_size, "the model's logits are not finite");
            done = false;
            break;
        }
        if (id == tokenizer_eos(m->tokenizer) || id == tokenizer_eot(m->tokenizer)) {
            answer->stop = SESSION_STOP_EOS;
            break;
        }
        done = (tokenizer_ids_push(&answer->ids, id) && add_text(answer, m->tokenizer, id, &sent, settings)) ||
               no_memory(error, error_size);
        if (!done || answer->ids.count == settings->max_tokens)
            break;
        if (model_context_tokens(context, i) >= m->shape.n_context) {
            answer->stop = SESSION_STOP_CONTEXT;
            break;
        }
        done = model_decode(context, i, &id, 1, &method->params, logits, &answer->decode, error, error_size);
    }
    free(logits);
    if (done && settings->on_text && answer->length > sent)
        settings->on_text(settings->user, answer->text + sent, answer->length - sent);
    dp_memory_init(&answer->memory);
    dp_sequence_memory(model_context_sequence(context, i), &answer->memory);
    return done;
}

void session_answer_free(session_answer *answer)
{
    tokenizer_ids_free(&answer->ids);
    free(answer->text);
    *answer = (session_answer){0};
}
