// windows.h without its macros, and what its functions say in our words. Of the *_windows.cpp files alone.
#pragma once

#define WIN32_LEAN_AND_MEAN
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>

#include <string>

namespace emoe {

// Paths and messages are UTF-8 in all of our interfaces.
std::wstring wide(const std::string &utf8);
std::string utf8(const wchar_t *text);
std::string windows_message(DWORD code);
// The nearest errno value: what File::read returns, negated.
int errno_of(DWORD code);
// A function of the system that older versions lack, or NULL.
void *system_function(const wchar_t *library, const char *name);

} // namespace emoe
