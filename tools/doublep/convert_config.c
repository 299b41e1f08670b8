/* convert_config.c: reads config.json: Hugging Face's Llama (hidden_size, num_hidden_layers, ...), or the short form
 * (d, layers, heads, ...) of models that keep q and k in GGUF's rotary order. */
#include "convert_config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

json_t *convert_load_json(const char *folder, const char *name, char *error, size_t error_size)
{
    char *path;
    if (asprintf(&path, "%s/%s", folder, name) < 0) {
        snprintf(error, error_size, "%s: no memory", folder);
        return NULL;
    }
    json_error_t why;
    json_t *json = json_load_file(path, 0, &why);
    if (!json) {
        snprintf(error, error_size, "%s: %s%s", path, why.text, why.line > 0 ? " (not valid JSON)" : "");
    } else if (!json_is_object(json)) {
        snprintf(error, error_size, "%s: not a JSON object", path);
        json_decref(json);
        json = NULL;
    }
    free(path);
    return json;
}

typedef struct source {
    const json_t *json;
    const char *folder;
    char *error;
    size_t error_size;
} source;

static bool fail(const source *s, const char *key, const char *what)
{
    snprintf(s->error, s->error_size, "%s/config.json: \"%s\" %s", s->folder, key, what);
    return false;
}

static bool get_u32(const source *s, const char *key, uint32_t *value)
{
    const json_t *number = json_object_get(s->json, key);
    const json_int_t given = json_integer_value(number);
    if (!json_is_integer(number) || given < 1 || given > INT32_MAX)
        return fail(s, key, "is missing, or not an integer from 1 to 2^31 - 1");
    *value = (uint32_t)given;
    return true;
}

/* For keys that may be missing or null: *value keeps its default then. */
static bool get_optional_u32(const source *s, const char *key, uint32_t *value)
{
    const json_t *number = json_object_get(s->json, key);
    return !number || json_is_null(number) || get_u32(s, key, value);
}

static bool get_positive(const source *s, const json_t *object, const char *key, double *value)
{
    const json_t *number = json_object_get(object, key);
    const double given = json_number_value(number);
    if (!json_is_number(number) || !(given > 0) || !isfinite(given))
        return fail(s, key, "is missing, or not a positive number");
    *value = given;
    return true;
}

static bool is_present(const json_t *value)
{
    return value && !json_is_null(value);
}

static bool read_short(const source *s, convert_config *c)
{
    c->hugging_face = false;
    c->tied = true;
    return get_u32(s, "vocab", &c->vocab) && get_u32(s, "d", &c->width) && get_u32(s, "layers", &c->layers) &&
           get_u32(s, "heads", &c->heads) && get_u32(s, "kv", &c->kv_heads) && get_u32(s, "dh", &c->head_dim) &&
           get_u32(s, "ff", &c->ffn_width) && get_u32(s, "ctx", &c->context) &&
           get_positive(s, s->json, "theta", &c->rope_base) && get_positive(s, s->json, "eps", &c->epsilon);
}

/* Rotary embedding: rope_theta and rope_scaling, or (later files) both in rope_parameters. */
static bool read_rope(const source *s, convert_config *c)
{
    const json_t *parameters = json_object_get(s->json, "rope_parameters"),
                 *scaling = json_object_get(s->json, "rope_scaling");
    const json_t *base = is_present(parameters) ? parameters : s->json;
    c->rope_base = 10000;
    if (is_present(json_object_get(base, "rope_theta")) && !get_positive(s, base, "rope_theta", &c->rope_base))
        return false;
    if (is_present(parameters)) scaling = parameters;
    if (!is_present(scaling)) return true;

    const json_t *type = json_object_get(scaling, "rope_type");
    if (!is_present(type)) type = json_object_get(scaling, "type");
    const char *name = json_string_value(type);
    if (!name || strcmp(name, "default") == 0) return name || fail(s, "rope_type", "is missing");
    if (strcmp(name, "llama3") != 0)
        return fail(s, "rope_type", "is neither \"default\" nor \"llama3\": not supported");
    return get_positive(s, scaling, "factor", &c->rope_factor) &&
           get_positive(s, scaling, "low_freq_factor", &c->rope_low) &&
           get_positive(s, scaling, "high_freq_factor", &c->rope_high) &&
           get_positive(s, scaling, "original_max_position_embeddings", &c->rope_context) &&
           (c->rope_low < c->rope_high || fail(s, "low_freq_factor", "is not below high_freq_factor"));
}

/* A token id, or the first of a list of them. */
static int64_t get_id(const json_t *json, const char *key)
{
    const json_t *id = json_object_get(json, key);
    if (json_is_array(id)) id = json_array_get(id, 0);
    return json_is_integer(id) ? json_integer_value(id) : -1;
}

static bool read_hugging_face(const source *s, convert_config *c)
{
    const char *model_type = json_string_value(json_object_get(s->json, "model_type"));
    const char *activation = json_string_value(json_object_get(s->json, "hidden_act"));
    if (model_type && strcmp(model_type, "llama") != 0) return fail(s, "model_type", "is not \"llama\"");
    if (activation && strcmp(activation, "silu") != 0) return fail(s, "hidden_act", "is not \"silu\"");
    c->hugging_face = true;
    c->tied = json_is_true(json_object_get(s->json, "tie_word_embeddings"));
    c->bos = get_id(s->json, "bos_token_id");
    c->eos = get_id(s->json, "eos_token_id");
    if (!get_u32(s, "vocab_size", &c->vocab) || !get_u32(s, "hidden_size", &c->width) ||
        !get_u32(s, "num_hidden_layers", &c->layers) || !get_u32(s, "num_attention_heads", &c->heads) ||
        !get_u32(s, "intermediate_size", &c->ffn_width) || !get_u32(s, "max_position_embeddings", &c->context) ||
        !get_positive(s, s->json, "rms_norm_eps", &c->epsilon))
        return false;
    c->kv_heads = c->heads;
    c->head_dim = c->width / c->heads;
    return get_optional_u32(s, "num_key_value_heads", &c->kv_heads) &&
           get_optional_u32(s, "head_dim", &c->head_dim) && read_rope(s, c);
}

bool convert_read_config(const char *folder, convert_config *config, char *error, size_t error_size)
{
    json_t *json = convert_load_json(folder, "config.json", error, error_size);
    if (!json) return false;
    const source s = {json, folder, error, error_size};
    convert_config c = {.bos = -1, .eos = -1};
    bool ok;
    if (json_object_get(json, "hidden_size")) ok = read_hugging_face(&s, &c);
    else if (json_object_get(json, "d")) ok = read_short(&s, &c);
    else ok = fail(&s, "hidden_size", "is missing: not the config of a Llama model");
    /* Bounds that keep every product of two sizes far below 2^64. */
    if (ok && (c.layers > 4096 || c.heads > 4096 || c.head_dim > 65536 || c.vocab > 1 << 24)) {
        snprintf(error, error_size, "%s/config.json: more than 4096 layers or heads, or 2^24 tokens", folder);
        ok = false;
    } else if (ok && (c.heads % c.kv_heads != 0 || c.head_dim % 2 != 0 || c.head_dim == 0)) {
        snprintf(error, error_size, "%s/config.json: %u query heads, %u KV heads, heads of %u: impossible", folder,
                 c.heads, c.kv_heads, c.head_dim);
        ok = false;
    }
    if (ok) *config = c;
    json_decref(json);
    return ok;
}

double convert_rope_factor(const convert_config *config, uint32_t pair)
{
    if (config->rope_factor == 0) return 1;
    const double wavelength = 2 * M_PI * pow(config->rope_base, 2.0 * pair / config->head_dim);
    const double turns = config->rope_context / wavelength; /* in the context that the model was first trained on */
    if (turns > config->rope_high) return 1;
    if (turns < config->rope_low) return config->rope_factor;
    const double share = (turns - config->rope_low) / (config->rope_high - config->rope_low);
    return 1 / ((1 - share) / config->rope_factor + share);
}
