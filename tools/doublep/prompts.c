/* prompts.c: see prompts.h. */
#include "prompts.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "files.h"

static void record_free(prompt_record *r)
{
    free(r->name);
    free(r->context);
    free(r->question);
    free(r->answer);
}

void prompts_free(prompt_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        record_free(&list->records[i]);
    free(list->records);
    *list = (prompt_list){0};
}

/* A copy of a string member; NULL where it is missing or memory runs out. */
static char *copy_member(const json_t *line, const char *key, size_t *length)
{
    const json_t *const member = json_object_get(line, key);
    if (!json_is_string(member))
        return NULL;
    *length = json_string_length(member);
    char *const copy = malloc(*length + 1);
    if (copy)
        memcpy(copy, json_string_value(member), *length + 1);
    return copy;
}

static char *copy_name(const json_t *line)
{
    const json_t *const task = json_object_get(line, "task"), *const id = json_object_get(line, "id");
    char *name = NULL;
    int n = -1;
    if (json_is_string(task) && json_is_integer(id))
        n = asprintf(&name, "%s:%lld", json_string_value(task), (long long)json_integer_value(id));
    else if (json_is_string(task) && json_is_string(id))
        n = asprintf(&name, "%s:%s", json_string_value(task), json_string_value(id));
    return n < 0 ? NULL : name;
}

static bool selected(const char *name, const char *select)
{
    if (!select || strcmp(name, select) == 0)
        return true;
    const size_t n = strlen(select);
    return strncmp(name, select, n) == 0 && name[n] == ':';
}

static bool add_line(prompt_list *list, const json_t *line, const char *select)
{
    prompt_record r = {.name = copy_name(line)};
    size_t ignored;
    if (r.name && !selected(r.name, select)) {
        record_free(&r);
        return true;
    }
    r.context = copy_member(line, "context", &r.context_length);
    r.question = copy_member(line, "question", &r.question_length);
    r.answer = copy_member(line, "answer", &ignored);
    const json_int_t n_context = json_integer_value(json_object_get(line, "ctx"));
    r.n_context = n_context > 0 && n_context <= UINT32_MAX ? (uint32_t)n_context : 0;
    prompt_record *const records = realloc(list->records, (list->count + 1) * sizeof(*records));
    if (records)
        list->records = records;
    if (!records || !r.name || !r.context || !r.question || !r.answer) {
        record_free(&r);
        return false;
    }
    list->records[list->count++] = r;
    return true;
}

bool prompts_load(prompt_list *list, const char *path, const char *select, size_t limit, char *error, size_t error_size)
{
    *list = (prompt_list){0};
    size_t length = 0;
    char *const text = file_read(path, &length, error, error_size);
    if (!text)
        return false;
    bool done = true;
    size_t number = 1;
    for (const char *line = text, *end; done && line < text + length && list->count < limit; line = end + 1, number++) {
        end = memchr(line, '\n', (size_t)(text + length - line));
        if (!end)
            end = text + length;
        if (strspn(line, " \t\r") >= (size_t)(end - line))
            continue;
        json_error_t reason;
        json_t *const object = json_loadb(line, (size_t)(end - line), 0, &reason);
        if (!object) {
            snprintf(error, error_size, "%s:%zu: %s", path, number, reason.text);
            done = false;
        } else if (!add_line(list, object, select)) {
            snprintf(error, error_size, "%s:%zu: needs the strings task, context, question and answer, and an id", path,
                     number);
            done = false;
        }
        json_decref(object);
    }
    free(text);
    if (done && list->count == 0) {
        snprintf(error, error_size, "%s: no prompt%s%s", path, select ? " is " : "", select ? select : "");
        done = false;
    }
    if (!done)
        prompts_free(list);
    return done;
}
