#include "base/windows.h"

#include <cerrno>

namespace emoe {

std::wstring wide(const std::string &utf8) {
    auto const bytes = static_cast<int>(utf8.size());
    int const n = MultiByteToWideChar(CP_UTF8, 0, utf8.data(), bytes, nullptr, 0);
    std::wstring out(static_cast<size_t>(n), L'\0');
    MultiByteToWideChar(CP_UTF8, 0, utf8.data(), bytes, out.data(), n);
    return out;
}

std::string utf8(const wchar_t *text) {
    int const n = WideCharToMultiByte(CP_UTF8, 0, text, -1, nullptr, 0, nullptr, nullptr); // with the end's zero
    std::string out(n > 0 ? static_cast<size_t>(n - 1) : 0, '\0');
    if (n > 1) WideCharToMultiByte(CP_UTF8, 0, text, -1, out.data(), n, nullptr, nullptr);
    return out;
}

std::string windows_message(DWORD code) {
    wchar_t text[512] = L"";
    DWORD n = FormatMessageW(FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS, nullptr, code, 0, text, 512,
                             nullptr);
    while (n > 0 && (text[n - 1] == L'\n' || text[n - 1] == L'\r' || text[n - 1] == L'.')) text[--n] = 0;
    return n > 0 ? utf8(text) : "error " + std::to_string(code);
}

int errno_of(DWORD code) {
    switch (code) {
    case ERROR_FILE_NOT_FOUND:
    case ERROR_PATH_NOT_FOUND: return ENOENT;
    case ERROR_ACCESS_DENIED:
    case ERROR_SHARING_VIOLATION:
    case ERROR_LOCK_VIOLATION: return EACCES;
    case ERROR_DISK_FULL:
    case ERROR_HANDLE_DISK_FULL: return ENOSPC;
    case ERROR_NOT_ENOUGH_MEMORY:
    case ERROR_COMMITMENT_LIMIT: return ENOMEM;
    case ERROR_INVALID_PARAMETER: return EINVAL;
    default: return EIO;
    }
}

void *system_function(const wchar_t *library, const char *name) {
    HMODULE const module = GetModuleHandleW(library);
    return module ? reinterpret_cast<void *>(GetProcAddress(module, name)) : nullptr;
}

} // namespace emoe
