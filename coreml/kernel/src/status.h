// Errors: a code and a sentence, handed to the caller's struct.
#pragma once

#include <cstdarg>
#include <cstdio>

#include "mobilemoe.h"

namespace mobilemoe {

using Status = mobilemoe_status;
using Error = mobilemoe_error;

inline Status succeed(Error* error) {
  if (error != nullptr) {
    error->status = MOBILEMOE_OK;
    error->message[0] = '\0';
  }
  return MOBILEMOE_OK;
}

// Fills `error` (which may be null) and returns `status`.
#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
inline Status
fail(Error* error, Status status, const char* format, ...) {
  if (error != nullptr) {
    error->status = status;
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
  }
  return status;
}

// Leaves the function with what the expression returns, unless that is MOBILEMOE_OK.
#define MOBILEMOE_TRY(expression)                                                    \
  do {                                                                               \
    const ::mobilemoe::Status mobilemoe_try_status = (expression);                   \
    if (mobilemoe_try_status != MOBILEMOE_OK) return mobilemoe_try_status;           \
  } while (false)

}  // namespace mobilemoe
