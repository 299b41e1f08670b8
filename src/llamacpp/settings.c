/* Reading the environment variables. */
#include "llamacpp/settings.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "doublep/doublep.h"

static bool number(const char *text, double low, double high, double *value)
{
    char *end;
    *value = strtod(text, &end);
    return end != text && *end == '\0' && isfinite(*value) && *value >= low && *value <= high;
}

/* 1073741824, 512M, 8G. Less than a megabyte is a unit forgotten: no copy would ever fit. */
static bool bytes(const char *text, uint64_t *value)
{
    char *end;
    const double n = strtod(text, &end);
    const char *const units = "KMGT", *const unit = *end ? strchr(units, *end) : NULL;
    if (end == text || (*end && (!unit || end[1]))) return false;
    const double scaled = n * (unit ? (double)(UINT64_C(1) << (10 * (unit - units + 1))) : 1);
    if (!(scaled >= 1 << 20 && scaled < 9e18)) return false;
    *value = (uint64_t)scaled;
    return true;
}

/* 0,1,8-11 */
static bool layers(const char *text, bool dense[PLUGIN_LAYERS])
{
    for (const char *p = text; *p;) {
        char *end;
        const unsigned long first = strtoul(p, &end, 10);
        unsigned long last = first;
        if (end == p) return false;
        if (*end == '-') {
            p = end + 1;
            last = strtoul(p, &end, 10);
            if (end == p) return false;
        }
        if (first > last || last >= PLUGIN_LAYERS || (*end && *end != ',')) return false;
        for (unsigned long l = first; l <= last; l++) dense[l] = true;
        p = *end ? end + 1 : end;
    }
    return true;
}

static const char *text_of(const char *name)
{
    const char *const text = getenv(name);
    return text && *text ? text : NULL;
}

bool plugin_settings_read(plugin_settings *s, char *why, size_t size)
{
    dp_attention_params defaults;
    dp_attention_params_init(&defaults);
    *s = (plugin_settings){.epsilon = defaults.epsilon, .min_context = defaults.min_context};
    if (dp_system_memory(&s->memory, NULL)) s->memory = UINT64_C(8) << 30;
    s->memory /= 2;
    const char *wrong = NULL, *text;
    double value;
    if ((text = text_of("DOUBLEP"))) {
        s->off = strcmp(text, "off") == 0;
        if (!s->off && strcmp(text, "on") != 0) wrong = "DOUBLEP: \"on\" or \"off\"";
    }
    if ((text = text_of("DOUBLEP_STATS"))) s->stats = strcmp(text, "0") != 0;
    if ((text = text_of("DOUBLEP_EPSILON"))) {
        if (number(text, 0, 1, &value))
            s->epsilon = (float)value;
        else
            wrong = "DOUBLEP_EPSILON: a number from 0 to 1";
    }
    if ((text = text_of("DOUBLEP_MIN_CONTEXT"))) {
        if (number(text, 0, UINT32_MAX, &value))
            s->min_context = (uint32_t)value;
        else
            wrong = "DOUBLEP_MIN_CONTEXT: a number of tokens";
    }
    if ((text = text_of("DOUBLEP_MEMORY")) && !bytes(text, &s->memory))
        wrong = "DOUBLEP_MEMORY: 1M or more, as bytes or a number with K, M, G or T";
    if ((text = text_of("DOUBLEP_KV"))) {
        s->int8 = strcmp(text, "int8") == 0;
        if (!s->int8 && strcmp(text, "cache") != 0) wrong = "DOUBLEP_KV: \"cache\" or \"int8\"";
    }
    if ((text = text_of("DOUBLEP_DENSE_LAYERS")) && !layers(text, s->dense))
        wrong = "DOUBLEP_DENSE_LAYERS: layers as in 0,1,8-11";
    if (wrong) snprintf(why, size, "%s is expected", wrong);
    return !wrong;
}
