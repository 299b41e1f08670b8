/* eval_methods.h: the methods of an evaluation, as the command line names them:
 *
 *     dense,double-p,double-p:epsilon=0.1:outlier_share=0.25,quest:share=0.03
 *
 * A name, then settings that differ from the method's defaults. */
#ifndef DOUBLEP_TOOL_EVAL_METHODS_H
#define DOUBLEP_TOOL_EVAL_METHODS_H

#include <jansson.h>

#include "method.h"

typedef struct eval_method {
    const method_type *type;
    void *settings;
    char *label; /* name and the settings that are not the defaults */
    char *full;  /* name and all settings */
} eval_method;

typedef struct eval_methods {
    eval_method *list;
    size_t count;
} eval_methods;

/* Adds the methods of `text`; what is there already is not added again. False and a message where one is wrong. */
bool eval_methods_add(eval_methods *methods, const char *text, char *error, size_t error_size);
void eval_methods_free(eval_methods *methods);

/* All settings; NULL where memory runs out. */
json_t *eval_method_params(const eval_method *method);

/* What the method must keep of the softmax mass to be at its aim, 0.9 where it has none. */
double eval_method_target(const eval_method *method);

#endif
