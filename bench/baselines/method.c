/* method.c: the table of methods, and their settings by name. */
#include "method.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const method_type *const method_types[] = {
    &method_dense,          &method_double_p,   &method_double_p_paper, &method_retroinfer, &method_quest,
    &method_quest_twilight, &method_oracle,     NULL,
};

const method_type *method_find(const char *name, size_t length)
{
    for (size_t i = 0; method_types[i]; i++)
        if (strlen(method_types[i]->name) == length && memcmp(method_types[i]->name, name, length) == 0)
            return method_types[i];
    return NULL;
}

static bool parse_mask(const char *text, uint64_t *mask)
{
    *mask = 0;
    if (strcmp(text, "none") == 0)
        return true;
    for (;;) {
        char *end;
        const unsigned long n = strtoul(text, &end, 10);
        if (*text < '0' || *text > '9' || n > 63)
            return false;
        *mask |= (uint64_t)1 << n;
        if (*end == '\0')
            return true;
        if (*end != '+')
            return false;
        text = end + 1;
    }
}

static bool parse_choice(const char *text, const char *const *choices, int *value)
{
    for (int i = 0; choices[i]; i++)
        if (strcmp(text, choices[i]) == 0) {
            *value = i;
            return true;
        }
    return false;
}

static bool parse_value(const method_field *field, const char *text, void *member)
{
    char *end = NULL;
    errno = 0;
    switch (field->kind) {
    case METHOD_F32: {
        const float x = strtof(text, &end);
        if (end == text || *end || !isfinite(x))
            return false;
        memcpy(member, &x, sizeof(x));
        return true;
    }
    case METHOD_U32:
    case METHOD_I32: {
        const long long n = strtoll(text, &end, 10);
        const bool is_unsigned = field->kind == METHOD_U32;
        if (end == text || *end || errno || n < (is_unsigned ? 0 : INT32_MIN) || n > (is_unsigned ? UINT32_MAX : INT32_MAX))
            return false;
        const uint32_t bits = (uint32_t)n;
        memcpy(member, &bits, sizeof(bits));
        return true;
    }
    case METHOD_MASK: {
        uint64_t mask;
        if (!parse_mask(text, &mask))
            return false;
        memcpy(member, &mask, sizeof(mask));
        return true;
    }
    case METHOD_CHOICE: {
        int value;
        if (!parse_choice(text, field->choices, &value))
            return false;
        memcpy(member, &value, sizeof(value));
        return true;
    }
    }
    return false;
}

bool method_set(const method_type *type, void *settings, const char *assignment, size_t length, char *error,
                size_t error_size)
{
    char text[128];
    if (length >= sizeof(text)) {
        snprintf(error, error_size, "%s: \"%.40s...\" is too long", type->name, assignment);
        return false;
    }
    memcpy(text, assignment, length);
    text[length] = '\0';
    char *const equals = strchr(text, '=');
    if (equals)
        *equals = '\0';
    const method_field *field = NULL;
    for (size_t i = 0; i < type->n_fields; i++)
        if (strcmp(text, type->fields[i].name) == 0)
            field = &type->fields[i];
    if (!field) {
        char names[400] = "";
        for (size_t i = 0; i < type->n_fields; i++)
            snprintf(names + strlen(names), sizeof(names) - strlen(names), "%s%s", i ? ", " : "", type->fields[i].name);
        snprintf(error, error_size, "%s has no setting \"%s\"%s%s", type->name, text, *names ? "; it has " : "", names);
        return false;
    }
    if (equals && parse_value(field, equals + 1, (char *)settings + field->offset))
        return true;
    snprintf(error, error_size, "%s: %s is \"%s\", which is no value for it", type->name, text, equals ? equals + 1 : "");
    return false;
}

void method_get(const method_field *field, const void *settings, char *text, size_t size)
{
    const void *const member = (const char *)settings + field->offset;
    float x;
    uint32_t u;
    int32_t n;
    uint64_t mask;
    switch (field->kind) {
    case METHOD_F32:
        memcpy(&x, member, sizeof(x));
        snprintf(text, size, "%.7g", (double)x);
        return;
    case METHOD_U32:
        memcpy(&u, member, sizeof(u));
        snprintf(text, size, "%u", u);
        return;
    case METHOD_I32:
        memcpy(&n, member, sizeof(n));
        snprintf(text, size, "%d", n);
        return;
    case METHOD_MASK:
        memcpy(&mask, member, sizeof(mask));
        snprintf(text, size, "%s", mask ? "" : "none");
        for (int i = 0; i < 64; i++)
            if (mask >> i & 1)
                snprintf(text + strlen(text), size - strlen(text), "%s%d", *text ? "+" : "", i);
        return;
    case METHOD_CHOICE:
        memcpy(&n, member, sizeof(n));
        snprintf(text, size, "%s", field->choices[n]);
        return;
    }
}

bool method_same_index(const method_type *type, const void *a, const void *b)
{
    for (size_t i = 0; i < type->n_fields; i++) {
        const method_field *const f = &type->fields[i];
        const size_t bytes = f->kind == METHOD_MASK ? sizeof(uint64_t) : sizeof(uint32_t);
        if (f->index && memcmp((const char *)a + f->offset, (const char *)b + f->offset, bytes) != 0)
            return false;
    }
    return true;
}
