module example

go 1.19

require memcg-monitor/client v0.0.0

replace memcg-monitor/client => ../../../clients/go
