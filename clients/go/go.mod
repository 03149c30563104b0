module memcg-monitor/client

go 1.19
