
end

-- Answers {what the script proper answers, {channel, message, …}}
local answered = answer()
write_something()
return {answered, wake_ups}
