/* eval_case.c: see eval_case.h. */
#include "eval_case.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "files.h"
#include "prompts.h"
#include "session.h"

uint64_t eval_hash(uint64_t hash, const void *bytes, size_t n)
{
    const unsigned char *const b = bytes;
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ b[i]) * 0x100000001b3u;
    return hash;
}

static void case_free(eval_case *c)
{
    free(c->name);
    free(c->task);
    tokenizer_ids_free(&c->prefill);
    tokenizer_ids_free(&c->question);
    tokenizer_ids_free(&c->answer);
}

void eval_cases_free(eval_cases *cases)
{
    for (size_t i = 0; i < cases->count; i++)
        case_free(&cases->list[i]);
    free(cases->list);
    *cases = (eval_cases){0};
}

static uint64_t hash_ids(uint64_t hash, const tokenizer_ids *ids)
{
    const uint64_t n = ids->count;
    return eval_hash(eval_hash(hash, &n, sizeof(n)), ids->ids, ids->count * sizeof(ids->ids[0]));
}

/* Takes the case over, whatever happens. */
static bool add_case(eval_cases *cases, eval_case *c, char *error, size_t error_size)
{
    eval_case *const list = c->name && c->task ? realloc(cases->list, (cases->count + 1) * sizeof(*list)) : NULL;
    if (!list) {
        snprintf(error, error_size, "out of memory");
        case_free(c);
        return false;
    }
    c->hash = hash_ids(hash_ids(hash_ids(eval_hash_start, &c->prefill), &c->question), &c->answer);
    cases->list = list;
    cases->list[cases->count++] = *c;
    return true;
}

/* Whether the name, or the task before its colon, is one of the list. */
static bool selected(const char *name, const char *tasks)
{
    const size_t task_length = strcspn(name, ":");
    for (const char *at = tasks; at; at = strchr(at, ',')) {
        at += *at == ',';
        const size_t n = strcspn(at, ",");
        if ((n == task_length || n == strlen(name)) && strncmp(name, at, n) == 0)
            return true;
    }
    return tasks == NULL;
}

static size_t count_task(const eval_cases *cases, size_t first, const char *task)
{
    size_t n = 0;
    for (size_t i = first; i < cases->count; i++)
        n += strcmp(cases->list[i].task, task) == 0;
    return n;
}

bool eval_cases_add_prompts(eval_cases *cases, const char *path, const eval_selection *selection, const tokenizer *t,
                            char *error, size_t error_size)
{
    prompt_list list;
    const size_t first = cases->count;
    if (!prompts_load(&list, path, NULL, SIZE_MAX, error, error_size))
        return false;
    bool done = true;
    for (size_t i = 0; done && i < list.count && cases->count < selection->limit; i++) {
        const prompt_record *const r = &list.records[i];
        if (!selected(r->name, selection->tasks))
            continue;
        eval_case c = {.name = strdup(r->name), .task = strndup(r->name, strcspn(r->name, ":"))};
        if (c.task && count_task(cases, first, c.task) >= selection->per_task) {
            case_free(&c);
            continue;
        }
        session_prompt prompt = {0};
        done = session_prompt_create(&prompt, t, r->context, r->context_length, r->question, r->question_length, error,
                                     error_size);
        c.prefill = prompt.prefill;
        c.question = prompt.tail;
        c.n_context = r->n_context ? r->n_context : (uint32_t)c.prefill.count;
        done = done && tokenizer_encode(t, r->answer, strlen(r->answer), false, &c.answer, error, error_size);
        if (done && c.answer.count == 0) {
            snprintf(error, error_size, "%s: %s has no answer", path, r->name);
            done = false;
        }
        if (done)
            done = add_case(cases, &c, error, error_size);
        else
            case_free(&c);
    }
    prompts_free(&list);
    if (done && cases->count == first && first < selection->limit) {
        snprintf(error, error_size, "%s: no prompt is %s", path, selection->tasks ? selection->tasks : "there");
        done = false;
    }
    return done;
}

static bool copy_ids(tokenizer_ids *to, const int32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!tokenizer_ids_push(to, ids[i]))
            return false;
    return true;
}

bool eval_cases_add_text(eval_cases *cases, const char *path, size_t window, size_t n_scored, size_t limit,
                         const tokenizer *t, char *error, size_t error_size)
{
    const char *const slash = strrchr(path, '/'), *const base = slash ? slash + 1 : path;
    size_t length;
    char *const text = file_read(path, &length, error, error_size);
    tokenizer_ids all = {0};
    bool done = text && tokenizer_encode(t, text, length, false, &all, error, error_size);
    free(text);
    const bool bos = tokenizer_add_bos(t) && tokenizer_bos(t) >= 0;
    const size_t fresh = window - bos; /* tokens of the text in a window */
    if (done && all.count < fresh) {
        snprintf(error, error_size, "%s: %zu tokens, a window needs %zu", path, all.count, fresh);
        done = false;
    }
    for (size_t i = 0; done && (i + 1) * fresh <= all.count && i < limit; i++) {
        const int32_t *const ids = all.ids + i * fresh, first = tokenizer_bos(t);
        const size_t before = fresh - n_scored; /* tokens of the text before the answer; the last is the question */
        eval_case c = {.task = strdup(base), .n_context = (uint32_t)window};
        if (asprintf(&c.name, "%s:%zu", base, i) < 0)
            c.name = NULL;
        if ((bos && !copy_ids(&c.prefill, &first, 1)) || !copy_ids(&c.prefill, ids, before - 1) ||
            !copy_ids(&c.question, ids + before - 1, 1) || !copy_ids(&c.answer, ids + before, n_scored)) {
            free(c.name);
            c.name = NULL;
        }
        done = add_case(cases, &c, error, error_size);
    }
    tokenizer_ids_free(&all);
    return done;
}
