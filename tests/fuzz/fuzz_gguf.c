/* Any bytes as a GGUF file: what opens can be read to the end, and loads as a model or is refused in words. */
#include "fuzz.h"
#include "model.h"

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    return 0;
}

static volatile double sink;

static void read_values(const gguf_file *file)
{
    for (size_t i = 0; i < gguf_n_values(file); i++) {
        const gguf_value *const value = gguf_value_at(file, i);
        gguf_array all = value->elements;
        gguf_string string;
        if (all.type == GGUF_STRING) {
            size_t length = 0;
            while (gguf_array_next_string(&all, &string))
                for (size_t j = 0; j < string.length; j++) length += (unsigned char)string.data[j];
            sink = (double)length;
        } else if (all.type != GGUF_BOOL && all.type != GGUF_ARRAY && all.count) {
            const uint64_t last = all.count - 1;
            const bool real = all.type == GGUF_FLOAT32 || all.type == GGUF_FLOAT64;
            sink = gguf_array_float(&all, 0) + gguf_array_float(&all, last);
            if (!real) sink = (double)(gguf_array_int(&all, 0) / 2 + gguf_array_int(&all, last) / 2);
        }
    }
}

static void read_tensors(const gguf_file *file)
{
    enum { MOST = 1 << 14 };
    static float row[MOST];
    for (size_t i = 0; i < gguf_n_tensors(file); i++) {
        const gguf_tensor *const t = gguf_tensor_at(file, i);
        MUST(gguf_find_tensor(file, t->name) != NULL);
        const uint64_t n_rows = t->dims[0] ? t->n_elements / t->dims[0] : 0;
        MUST(!gguf_tensor_to_f32(t, n_rows, 1, row));
        if (!n_rows || t->dims[0] > MOST) continue;
        MUST(gguf_tensor_to_f32(t, 0, 1, row) && gguf_tensor_to_f32(t, n_rows - 1, 1, row));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char error[256] = "";
    int descriptor;
    const char *const path = memory_file(data, size, &descriptor);
    gguf_file *const file = gguf_open(path, error, sizeof error);
    MUST(!file == !!*error);
    if (file) {
        read_values(file);
        read_tensors(file);
        gguf_close(file);
        model *const m = model_load(path, error, sizeof error);
        MUST(!m == !!*error);
        model_free(m);
    }
    close(descriptor);
    return 0;
}
