/* eval_methods.c: see eval_methods.h. */
#include "eval_methods.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double usual_target = 0.9;

static void method_free(eval_method *m)
{
    free(m->settings);
    free(m->label);
    free(m->full);
}

void eval_methods_free(eval_methods *methods)
{
    for (size_t i = 0; i < methods->count; i++)
        method_free(&methods->list[i]);
    free(methods->list);
    *methods = (eval_methods){0};
}

/* name:field=value:..., with all fields or only those that differ from `defaults`; NULL where memory runs out. */
static char *describe(const eval_method *m, const void *defaults)
{
    char *text = NULL;
    size_t size = 0;
    FILE *const out = open_memstream(&text, &size);
    if (!out)
        return NULL;
    fputs(m->type->name, out);
    for (size_t i = 0; i < m->type->n_fields; i++) {
        char value[256], usual[256] = "";
        method_get(&m->type->fields[i], m->settings, value, sizeof(value));
        if (defaults)
            method_get(&m->type->fields[i], defaults, usual, sizeof(usual));
        if (strcmp(value, usual) != 0)
            fprintf(out, ":%s=%s", m->type->fields[i].name, value);
    }
    if (fclose(out) == 0)
        return text;
    free(text);
    return NULL;
}

static bool method_parse(eval_method *m, const char *text, size_t length, char *error, size_t error_size)
{
    const char *const end = text + length, *at = memchr(text, ':', length);
    const size_t name_length = at ? (size_t)(at - text) : length;
    *m = (eval_method){.type = method_find(text, name_length)};
    if (!m->type) {
        char names[256] = "";
        for (size_t i = 0; method_types[i]; i++)
            snprintf(names + strlen(names), sizeof(names) - strlen(names), "%s%s", i ? ", " : "", method_types[i]->name);
        snprintf(error, error_size, "\"%.*s\" is no method; there are %s", (int)name_length, text, names);
        return false;
    }
    void *const defaults = malloc(m->type->settings_bytes);
    m->settings = malloc(m->type->settings_bytes);
    bool done = defaults && m->settings;
    if (done) {
        m->type->defaults(defaults);
        m->type->defaults(m->settings);
        while (done && at) {
            const char *const first = at + 1;
            at = memchr(first, ':', (size_t)(end - first));
            done = method_set(m->type, m->settings, first, (size_t)((at ? at : end) - first), error, error_size);
        }
        m->label = done ? describe(m, defaults) : NULL;
        m->full = done ? describe(m, NULL) : NULL;
        if (done && !(m->label && m->full))
            snprintf(error, error_size, "out of memory");
    } else {
        snprintf(error, error_size, "out of memory");
    }
    free(defaults);
    if (m->full)
        return true;
    method_free(m);
    return false;
}

static bool known(const eval_methods *methods, const char *full)
{
    for (size_t i = 0; i < methods->count; i++)
        if (strcmp(methods->list[i].full, full) == 0)
            return true;
    return false;
}

bool eval_methods_add(eval_methods *methods, const char *text, char *error, size_t error_size)
{
    for (const char *at = text;;) {
        const char *const comma = strchr(at, ',');
        const size_t length = comma ? (size_t)(comma - at) : strlen(at);
        eval_method m;
        if (!method_parse(&m, at, length, error, error_size))
            return false;
        eval_method *list = methods->list;
        if (known(methods, m.full)) {
            method_free(&m);
        } else if ((list = realloc(list, (methods->count + 1) * sizeof(*list)))) {
            methods->list = list;
            methods->list[methods->count++] = m;
        } else {
            method_free(&m);
            snprintf(error, error_size, "out of memory");
            return false;
        }
        if (!comma)
            return true;
        at = comma + 1;
    }
}

json_t *eval_method_params(const eval_method *m)
{
    json_t *const params = json_object();
    for (size_t i = 0; i < m->type->n_fields; i++) {
        const method_field *const field = &m->type->fields[i];
        char value[256];
        method_get(field, m->settings, value, sizeof(value));
        json_t *const number = field->kind == METHOD_F32                                  ? json_real(strtod(value, NULL))
                               : field->kind == METHOD_U32 || field->kind == METHOD_I32 ? json_integer(atoll(value))
                                                                                          : json_string(value);
        json_object_set_new(params, field->name, number);
    }
    return params;
}

double eval_method_target(const eval_method *m)
{
    const double target = m->type->target(m->settings);
    return target > 0 ? target : usual_target;
}
