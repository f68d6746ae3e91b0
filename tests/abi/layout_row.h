#ifndef SLUICE_TESTS_ABI_LAYOUT_ROW_H_
#define SLUICE_TESTS_ABI_LAYOUT_ROW_H_
/* What a header says of one record, field, number or text. */
#include <stddef.h>
#ifdef __cplusplus
extern "C" {
#endif
struct layout_row {
  const char *name, *field;
  size_t at; /* of a number: itself */
  size_t size;
  const char* text;
};
extern const struct layout_row layout_2_0[]; /* end with a row without a name */
extern const struct layout_row layout_today[];
#ifdef __cplusplus
}
#endif
#endif /* SLUICE_TESTS_ABI_LAYOUT_ROW_H_ */
